"""Refinement: from a box, points, polygons or a rough mask to a mask with the facts that later rules read."""
