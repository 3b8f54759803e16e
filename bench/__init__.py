"""Speed, memory and machine code of the package, measured."""
