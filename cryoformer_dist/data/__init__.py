"""The particle store and its way to the device."""
