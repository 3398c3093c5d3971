"""From a strategy to what is shipped: fine-tuning, export, evaluation."""
