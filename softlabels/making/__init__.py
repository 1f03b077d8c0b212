"""How a store comes to be: claims, plan, commit, finish, amend, repair."""
