"""What the text detectors know of ordinary text before they have read any."""
