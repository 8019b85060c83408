package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// jsonTree reads a stream of JSON values into nodes. JSON is not read as YAML,
// although nearly all of it is: YAML reads the escapes of characters beyond 16
// bits differently.
type jsonTree struct {
	*reader
	src  []byte
	dec  *json.Decoder
	line int
	at   int64
}

// errLimit says that a limit was passed and has been reported.
var errLimit = errors.New("manifest: a limit was passed")

// syntaxError is where a text stops being JSON.
type syntaxError struct {
	line int
	err  error
}

func (e *syntaxError) Error() string { return "not valid JSON: " + e.err.Error() }

// jsonSource reads every value of the source, as far as it is JSON.
func (r *reader) jsonSource(src []byte) ([]*node, *syntaxError) {
	t := &jsonTree{reader: r, src: src, dec: json.NewDecoder(bytes.NewReader(src)), line: 1}
	t.dec.UseNumber()
	var docs []*node
	for {
		n, err := t.value(0)
		switch {
		case errors.Is(err, io.EOF):
			return docs, nil
		case errors.Is(err, errLimit):
			return docs, nil
		case err != nil:
			return docs, &syntaxError{line: t.here(), err: err}
		}
		docs = append(docs, n)
		if r.over(len(docs), t.here()) {
			return docs, nil
		}
	}
}

// here is the line of the last token.
func (t *jsonTree) here() int {
	now := t.dec.InputOffset()
	t.line += bytes.Count(t.src[t.at:now], []byte("\n"))
	t.at = now
	return t.line
}

func (t *jsonTree) value(depth int) (*node, error) {
	tok, err := t.dec.Token()
	if err != nil {
		return nil, err
	}
	n := &node{line: t.here()}
	if !t.spend(n.line, 0, depth, false) {
		return nil, errLimit
	}
	switch v := tok.(type) {
	case json.Delim:
		return n, t.composite(n, v, depth)
	case string:
		n.kind, n.text = stringNode, v
	case bool:
		n.kind, n.bool, n.text = boolNode, v, fmt.Sprint(v)
	case json.Number:
		num, ok := jsonNumber(v.String())
		if !ok {
			return nil, fmt.Errorf("number %s is out of range", v)
		}
		num.line = n.line
		n = &num
	}
	return n, nil
}

func (t *jsonTree) composite(n *node, open json.Delim, depth int) error {
	n.kind = listNode
	if open == '{' {
		n.kind = objectNode
	}
	for t.dec.More() {
		if n.kind == objectNode {
			tok, err := t.dec.Token()
			if err != nil {
				return unexpected(err)
			}
			name, ok := tok.(string)
			if !ok {
				return fmt.Errorf("a key must be a string, not %v", tok)
			}
			n.keys = append(n.keys, key{name: name, line: t.here()})
		}
		item, err := t.value(depth + 1)
		if err != nil {
			return unexpected(err)
		}
		n.items = append(n.items, item)
	}
	_, err := t.dec.Token()
	return unexpected(err)
}

// unexpected makes the end of the text an error: it came within a value.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
