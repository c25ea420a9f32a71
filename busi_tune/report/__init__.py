"""Pictures of what was trained."""
