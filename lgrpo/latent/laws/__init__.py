"""The laws that come with lgrpo, one file each. See lgrpo.latent.law for what a law is."""
