"""Cases of every kernel, a file each: `cases(platform)` lists them."""
