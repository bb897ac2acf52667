"""Several processes (`ranks`) and several threads (`threads`) at work together."""
