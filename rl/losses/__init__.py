"""Policy losses. Each is one pure function: tensors in, (elementwise loss, metrics) out."""
