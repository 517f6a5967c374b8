"""What programs are made of: compiled functions of one job each, in the modules of the transforms that lower to them.

Each takes the address of a job (`layout.Job`) and works in place on the block of rows that it describes; numbers p0 to
p7 are its parameters. Plain-numpy twin of each: the `reference` of its transform.
"""
