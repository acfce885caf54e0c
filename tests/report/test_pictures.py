"""An image of a data set as pictures: colours, labels, boxes."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from reports import boxes, masks

from repvgg_mm.openmmlab.config import import_toolbox
from repvgg_mm.openmmlab.data import validation_set
from repvgg_mm.report.pictures import colours_of, draw_boxes, draw_mask


def test_pixels_without_a_label_are_black():
    sample, = masks(np.array([[0, 1, 255]]))
    axis = Figure().subplots()
    draw_mask(axis, None, sample, 'pred', np.array([[9, 8, 7], [1, 2, 3]], dtype=np.uint8))
    assert axis.images[0].get_array().tolist() == [[[9, 8, 7], [1, 2, 3], [0, 0, 0]]]


def test_boxes_are_drawn_in_their_colour_with_the_score_of_predictions():
    sample = boxes((10, 20, 30, 50, 1, 0.873), (0, 0, 9, 9, 0, 0.49))  # the second one is not drawn
    colours = np.array([[255, 0, 0], [0, 51, 255], [220, 220, 40]], dtype=np.uint8)
    axis = Figure().subplots()
    draw_boxes(axis, np.zeros((60, 80, 3), np.uint8), sample, 'pred', colours)
    box, = axis.patches
    assert (box.get_xy(), box.get_width(), box.get_height()) == ((10, 20), 20, 30)
    assert box.get_edgecolor()[:3] == to_rgb((0, 0.2, 1))
    assert [(text.get_text(), text.get_position()) for text in axis.texts] == [('87', (10, 20))]
    assert tuple(axis.images[0].get_extent()) == (0, 80, 60, 0)
    draw_boxes(axis, np.zeros((60, 80, 3), np.uint8), boxes((0, 0, 9, 9, 2, 0.9)), 'pred', colours)
    assert [text.get_color() for text in axis.texts] == ['white', 'black']  # on blue, on yellow


def test_colours_of_a_data_set_without_a_palette_are_made_up_and_differ(converted):
    import_toolbox(converted[2])
    dataset = validation_set(converted[2])
    assert colours_of(dataset)[0].tolist() == [60, 60, 60]
    dataset._metainfo['palette'] = []
    colours = colours_of(dataset)
    assert colours.shape == (6, 3) and colours.dtype == np.uint8 and len(np.unique(colours, axis=0)) == 6
