"""Files that come with the package, found by their names (`amc.data.datasets.find_file`): trained
base networks, and the indices of the images that they have not seen.
"""
