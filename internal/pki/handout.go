package pki

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"podwire.dev/internal/errs"
)

// TokenName is the file of the plain token in a directory that HandOut made.
const TokenName = "token"

// sharedMode is what the group may read: a process that joins need not be the user that
// made its token.
const sharedMode fs.FileMode = 0o640

// HandOut gives each identity of the plan a directory of its own in to, named
// <kind>-<name>, with what it takes of the directory that Init made and nothing else:
// ca.crt and token to join with; for ingress the key of Secrets, too. service-cluster is
// there always, with ca.crt, ca.key and tokens.json, as the place of the authority. It is
// for places where a process must not see what is others', as a container that mounts
// only its own. What is there is brought up to date. A plain token that was removed from
// dir since is left as it was handed out; NotFound if it is in neither place.
func HandOut(dir, to string, plan Plan) (Result, error) {
	var out Result
	for _, g := range gifts(dir, plan) {
		made, err := handOut(g.from, filepath.Join(to, g.to), g.mode)
		if err != nil {
			return out, errs.Wrap(err, "pki: hand out %s", g.to)
		}
		if made {
			out.Created = append(out.Created, g.to)
		}
	}
	return out, nil
}

// gift is one file that is handed out; to is relative.
type gift struct {
	from, to string
	mode     fs.FileMode
}

func gifts(dir string, plan Plan) []gift {
	var out []gift
	give := func(id Identity, from, as string, mode fs.FileMode) {
		out = append(out, gift{from, filepath.Join(string(id.Kind)+"-"+id.Name, as), mode})
	}
	cluster, ingress := Service("cluster"), Service("ingress")
	give(cluster, filepath.Join(dir, CACertFile), CACertFile, publicMode)
	give(cluster, filepath.Join(dir, CAKeyFile), CAKeyFile, privateMode)
	give(cluster, filepath.Join(dir, TokensFile), TokensFile, privateMode)
	for _, id := range plan.identities() {
		give(id, filepath.Join(dir, CACertFile), CACertFile, publicMode)
		give(id, TokenFile(dir, id), TokenName, sharedMode)
		if id == ingress {
			give(id, filepath.Join(dir, SecretsKeyFile), SecretsKeyFile, sharedMode)
		}
	}
	return out
}

// handOut copies one file, unless the target says the same already.
func handOut(from, to string, mode fs.FileMode) (made bool, err error) {
	have, err := os.ReadFile(to)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, errs.WrapAs(errs.Internal, err, "read what was handed out")
	}
	there := err == nil
	want, err := os.ReadFile(from)
	switch {
	case errors.Is(err, fs.ErrNotExist) && there:
		return false, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, errs.New(errs.NotFound, "%s is gone: make a new token with `podwire pki token create`", from)
	case err != nil:
		return false, errs.WrapAs(errs.Internal, err, "read what to hand out")
	case there && bytes.Equal(have, want):
		return false, nil
	}
	return true, writeFile(to, want, mode)
}
