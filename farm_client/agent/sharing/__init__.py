"""One copy of a blob for all agents of a machine: who has it lends a handle, who needs it links the file."""
