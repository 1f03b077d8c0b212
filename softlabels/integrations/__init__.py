"""A store inside other libraries; each file needs an extra of its name."""
