"""Memory estimates and plans, and the errors of a model that does not fit."""
