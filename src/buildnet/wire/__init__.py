"""Between the bytes of contracts and the values of the model. No policy, no I/O."""
