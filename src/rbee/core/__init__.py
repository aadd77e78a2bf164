"""Pure decisions: no I/O, no clock, no async, no logging; standard-library data types only."""
