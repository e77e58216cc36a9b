"""The members with the flow of the paper (`Config.flow = "hpcm"`): their blocks, transforms, distributions, presets."""
