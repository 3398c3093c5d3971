"""Costs on paper, and budgets."""
