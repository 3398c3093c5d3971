"""What people look at: pictures, tables, pages, model cards."""
