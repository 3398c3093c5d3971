"""Training: of base networks, and of compressed ones under a teacher."""
