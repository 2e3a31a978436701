"""The C headers that the extensions include, as far as they use them. Each says what it is linked with."""
