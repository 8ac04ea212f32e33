"""python -m diffusers_erase.cli"""

from diffusers_erase.cli import main


main()
