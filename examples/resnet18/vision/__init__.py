"""``models/resnet.py`` is torchvision's own file, as it is; the others are what it imports for weights to download."""
