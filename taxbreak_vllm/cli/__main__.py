"""`python -m taxbreak_vllm.cli` is `taxbreak`."""

from taxbreak_vllm.cli.main import main

if __name__ == "__main__":
    main()
