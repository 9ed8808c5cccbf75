def from_config(config, split): raise NotImplementedError
