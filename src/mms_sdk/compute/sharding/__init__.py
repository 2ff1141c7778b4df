"""Which array lies on which device."""
