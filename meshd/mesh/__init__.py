"""Who is in the mesh and what each of them says of itself."""
