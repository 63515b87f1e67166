class ImageClassification:
    """How pictures are prepared for downloaded weights, of which there are none here."""
