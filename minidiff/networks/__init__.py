"""The networks. They know nothing of schedules or samplers: tensors in, tensors out."""
