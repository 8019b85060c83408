// Package manifest turns Kubernetes YAML and JSON into objects, and objects back
// into text.
//
// In: bytes that a user or kubectl wrote (any number of documents, kind: List
// too). Out: messages of proto/podwire/object/v1 with the place each came from,
// or every mistake at once, each with file, line, Kubernetes field path, value and
// rule. The other way: messages in, stable YAML or JSON out.
//
// The text is walked against the message's descriptor before anything is built,
// because bare protojson takes a field by two names, stops at the first error and
// knows no lines. YAML scalars mean what they mean to kubectl, which reads YAML
// 1.1: yes and on are booleans, 010 is eight.
//
// Invariants: nothing that was written is lost, apart from nulls and comments;
// what is printed parses to the same object; equal objects print to equal bytes;
// size, depth, number of values and alias expansion are bounded before memory is
// spent. Only the shape is checked here: ranges, names, defaults and immutability
// are rules of the services' cores. The package must not read files, write
// anything, or know which service is where.
package manifest
