"""Jobs and the workers that train them: in this process, in processes of this machine, or on a Ray cluster."""
