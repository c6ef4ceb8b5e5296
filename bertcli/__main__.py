"""`python -m bertcli`, and so `accelerate launch -m bertcli` and `torchrun -m bertcli`."""

from bertcli.cli.main import main

if __name__ == "__main__":
    main()
