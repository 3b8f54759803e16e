"""What machines that nobody measured would do, from counts, compiled code and data sheets."""
