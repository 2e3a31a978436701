"""What crosses a control pipe between the controller and an agent: messages, the peers that answer them, endings."""
