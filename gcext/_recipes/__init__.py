"""Recipes: every method of the field as an up link, a down link and a schedule.

Each is a function of a few lines; its docstring has the formula, what travels, what state either
side keeps, and where the method fails. In all of them g is a client's *update*: the model it
started from less the model after local training, so that the server's model moves by minus the
mean. A new method that needs no new kernel is one more function.
"""

from importlib import import_module

from gcext._recipes.advise import Advice, advise
from gcext._recipes.breakeven import Breakeven, breakeven
from gcext._recipes.recipe import (
    About,
    Recipe,
    Schedule,
    about,
    recipe,
    recipes,
    register_recipe,
)
from gcext._recipes.table import MethodRow, methods

for _name in ("federated", "sparse", "quantized", "outer"):  # the order of recipes()
    import_module(f"gcext._recipes.{_name}")

__all__ = ["About", "Advice", "Breakeven", "MethodRow", "Recipe", "Schedule", "about", "advise"]
__all__ += ["breakeven", "methods", "recipe", "recipes", "register_recipe"]
