"""Read a text through an SAE: which latents fire on which token, and how they change the prediction of the next one."""
