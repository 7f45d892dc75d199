"""What surrounds a YOLO model, as PyTorch steps for whole batches on the device where the model runs.

The same as `Letterbox.fit` and `suppression.select` for one picture in numpy.
"""

from __future__ import annotations

import torch
import torchvision

from .letterbox import PADDING_VALUE, Letterbox

# Ultralytics looks at no more candidates of a picture than this.
_MAX_CANDIDATES = 30_000


def letterboxed(pixels: torch.Tensor, letterbox: Letterbox, dtype: torch.dtype) -> torch.Tensor:
    """(n, 3, height, width) RGB 0-1 in channels-last memory, from (n, h, w, 3) uint8 BGR pictures."""
    # Whole numbers up to 255 are exact in half precision, and what is interpolated is rounded to them.
    scaled = pixels.permute(0, 3, 1, 2).to(dtype)
    size = (letterbox.scaled_height, letterbox.scaled_width)
    if scaled.shape[2:] != size:
        # Without smoothing, like cv2's INTER_LINEAR that Ultralytics uses.
        scaled = torch.nn.functional.interpolate(scaled, size, mode="bilinear", align_corners=False).round_()
    fitted = torch.empty(
        (len(pixels), 3, letterbox.height, letterbox.width),
        dtype=dtype,
        device=pixels.device,
        memory_format=torch.channels_last,
    ).fill_(PADDING_VALUE)
    rows = slice(letterbox.top, letterbox.top + letterbox.scaled_height)
    columns = slice(letterbox.left, letterbox.left + letterbox.scaled_width)
    fitted[:, :, rows, columns] = scaled.flip(1)
    return fitted.div_(255)


def standing(
    output: torch.Tensor, label_ids: torch.Tensor, *, suppressed: bool, min_score: float, iou: float
) -> torch.Tensor:
    """What a batch's raw output says of the labels of interest.

    Args:
        output: (n, 4 + classes, places): centre x, centre y, width, height in pixels of the model's input and
            a score for each class; or, suppressed by the model itself, (n, places, 6): x1, y1, x2, y2, score,
            class. What more there is, of masks and key points, is not looked at.
        label_ids: (classes,) for each class a label id, or -1 for what is of no interest.
        min_score: only what scores more.
        iou: of two boxes of one label in one picture that overlap by more, the better one stays.

    Returns:
        (k, 7) float32: picture, x1, y1, x2, y2, score, label id; for each picture the best first.
    """
    if suppressed:
        scores, classes = output[:, :, 4], output[:, :, 5].long()
    else:
        # A place belongs to its best class, also where that one is of no interest: half a dog is no person.
        scores, classes = output[:, 4 : 4 + len(label_ids)].max(dim=1)
        output = output.transpose(1, 2)
    labels = label_ids[classes]
    wanted = (scores > min_score) & (labels >= 0)
    if not suppressed and scores.shape[1] > _MAX_CANDIDATES:
        strongest = scores.where(wanted, 0).topk(_MAX_CANDIDATES, dim=1).indices
        wanted &= torch.zeros_like(wanted).scatter_(1, strongest, True)
    picture, place = wanted.nonzero(as_tuple=True)
    boxes, found, label = output[picture, place, :4].float(), scores[picture, place].float(), labels[wanted]
    if not suppressed:
        centres, halves = boxes[:, :2], boxes[:, 2:] / 2
        boxes = torch.cat((centres - halves, centres + halves), 1)
    rows = torch.cat((picture[:, None], boxes, found[:, None], label[:, None]), 1)
    if suppressed:
        return rows
    # Labels of interest are few: torchvision moves groups apart by their number, which costs digits.
    group = label * len(output) + picture
    return rows[torchvision.ops.batched_nms(boxes, found, group, iou)]
