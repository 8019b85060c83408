package cli

import (
	"fmt"
	"io"
)

// progressLine is the one line on a terminal that says what a command waits for. Where there is no terminal it is quiet.
type progressLine struct {
	w     io.Writer
	shown string
}

// lineWidth keeps the line from being broken by a narrow terminal, which could not be taken back.
const lineWidth = 78

const eraseLine = "\r\x1b[K"

// say replaces the line.
func (p *progressLine) say(format string, args ...any) {
	if p.w == nil {
		return
	}
	text := []rune(fmt.Sprintf(format, args...))
	for i, r := range text {
		if r < ' ' {
			text = append(text[:i:i], '…')
			break
		}
	}
	if len(text) > lineWidth {
		text = append(text[:lineWidth-1:lineWidth-1], '…')
	}
	if string(text) == p.shown {
		return
	}
	p.shown = string(text)
	fmt.Fprint(p.w, eraseLine+p.shown)
}

// clear takes the line away.
func (p *progressLine) clear() {
	if p.w != nil && p.shown != "" {
		fmt.Fprint(p.w, eraseLine)
		p.shown = ""
	}
}
