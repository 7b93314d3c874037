"""How an image was made: in a sidecar file and in the image's own metadata."""
