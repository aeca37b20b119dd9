"""What a seeded tensor cache saves when a split model is loaded, beside the same load without."""
