"""Commands that measure, each against its limit."""
