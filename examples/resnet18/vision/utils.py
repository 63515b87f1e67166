def _log_api_usage_once(obj):
    """torchvision counts its uses."""
