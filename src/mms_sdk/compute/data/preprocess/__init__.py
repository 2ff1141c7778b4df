"""From stored rows to what a model takes: a host part and a device part, both plain data."""
