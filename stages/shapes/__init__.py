"""The shapes world: photos and clips of drawn shapes whose truth is known to the pixel and the frame."""
