"""What a message is made of: each instruction that an emulated machine executes for it, told by function and layer."""
