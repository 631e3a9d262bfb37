"""``python -m corgi_opt`` is the command line, as ``corgi-opt`` is."""

from corgi_opt.cli.main import main

if __name__ == "__main__":
    main()
