def handle_legacy_interface(**weights):
    """Leave a function as it is: it is called without ``pretrained``."""
    return lambda function: function


def _ovewrite_named_param(options, name, value):
    options[name] = value
