"""Where a pixel lies: equation C.7.6.2.1-1 of PS3.3 written out, one patient axis at a time."""


def pixel_position(position, orientation, spacing, row, column):
    """(x, y, z) LPS mm of the centre of the pixel at `row` and `column`, both from 0.

    ``position`` is Image Position (Patient), ``orientation`` Image Orientation (Patient): first the
    direction of a row (along which the column index grows), then that of a column. ``spacing`` is
    Pixel Spacing: first between rows, then between columns.
    """
    between_rows, between_columns = (float(value) for value in spacing)
    point = []
    for axis in range(3):
        along_row = float(orientation[axis]) * between_columns * column
        along_column = float(orientation[3 + axis]) * between_rows * row
        point.append(float(position[axis]) + along_row + along_column)
    return tuple(point)
