// One npm package on faces and photos, like runner.py; run where node_modules is.
// node runner.cjs PACKAGE JOB.json, or PACKAGE PHOTO.rgb (raw bytes; the size is in PHOTO.rgb.json).

const fs = require('fs');
const path = require('path');

const modules = path.join(process.cwd(), 'node_modules');
const wasm = path.join(modules, '@tensorflow/tfjs-backend-wasm/dist/');
const best = (scores) => Object.entries(scores).reduce((a, b) => (b[1] > a[1] ? b : a))[0];

async function faceApi() {
  const tf = require(path.join(modules, '@tensorflow/tfjs'));
  const backend = require(path.join(modules, '@tensorflow/tfjs-backend-wasm'));
  const faceapi = require(path.join(modules, '@vladmandic/face-api/dist/face-api.node-wasm.js'));
  backend.setWasmPaths(wasm);
  backend.setThreadsCount(1);
  await tf.setBackend('wasm');
  await tf.ready();
  const models = path.join(modules, '@vladmandic/face-api/model');
  await faceapi.nets.ssdMobilenetv1.loadFromDisk(models);
  await faceapi.nets.faceExpressionNet.loadFromDisk(models);
  return {
    tensor: (bytes, shape) => tf.tensor3d(new Uint8Array(bytes), shape, 'int32'),
    classify: async (face) => best(await faceapi.nets.faceExpressionNet.predictExpressions(face)),
    find: async (photo) => {
      const found = await faceapi.detectAllFaces(photo, new faceapi.SsdMobilenetv1Options({ minConfidence: 0.2 })).withFaceExpressions();
      return found.map(({ detection: { box }, expressions }) => [
        [box.left, box.top, box.right, box.bottom], best(expressions)]);
    },
  };
}

async function human() {
  const { Human } = require(path.join(modules, '@vladmandic/human/dist/human.node-wasm.js'));
  const models = path.join(modules, '@vladmandic/human/models/');
  const online = globalThis.fetch;
  globalThis.fetch = async (url, options) => { // its models lie on the disk, which node does not fetch from
    const file = String(url);
    return file.startsWith('file://') ? new Response(fs.readFileSync(file.slice(7))) : online(url, options);
  };
  const off = { enabled: false };
  const config = {
    backend: 'wasm', wasmPath: wasm, modelBasePath: `file://${models}`, cacheSensitivity: 0, debug: false,
    face: { enabled: true, detector: { maxDetected: 20, rotation: true }, emotion: { enabled: true, minConfidence: 0 }, description: off, iris: off, antispoof: off, liveness: off },
    body: off, hand: off, object: off, gesture: off, segmentation: off, filter: off,
  };
  const network = new Human(config);
  await network.load();
  const { tf } = network;
  const emotion = new tf.GraphModel(`file://${models}emotion.json`);
  await emotion.load();
  const names = ['angry', 'disgust', 'fear', 'happy', 'sad', 'surprise', 'neutral'];
  const side = emotion.inputs[0].shape[2];
  const label = (found) => found.reduce((a, b) => (b.score > a.score ? b : a)).emotion;
  return {
    tensor: (bytes, shape) => tf.tensor3d(new Uint8Array(bytes), shape, 'int32'),
    classify: async (face) => { // as in its gear/emotion.ts, without its detector
      const scores = tf.tidy(() => {
        const small = tf.image.resizeBilinear(tf.div(tf.expandDims(tf.cast(face, 'float32'), 0), 255), [side, side]);
        const grey = tf.sum(tf.mul(small, [0.2989, 0.587, 0.114]), 3, true);
        return emotion.execute(tf.mul(tf.sub(grey, 0.5), 2));
      });
      const data = await scores.data();
      tf.dispose(scores);
      return names[data.indexOf(Math.max(...data))];
    },
    find: async (photo) => {
      const found = await network.detect(photo);
      return found.face.filter((f) => f.emotion?.length).map(({ box: [x, y, w, h], emotion: scores }) => [
        [x, y, x + w, y + h], label(scores)]);
    },
  };
}

function npy(file) { // version 1.0 of NumPy's format, uint8, C order
  const data = fs.readFileSync(file);
  const header = data.readUInt16LE(8);
  const shape = /'shape': \(([^)]*)\)/.exec(data.toString('latin1', 10, 10 + header))[1];
  return { data: data.subarray(10 + header), shape: shape.split(',').filter((n) => n.trim()).map(Number) };
}

async function main(name, job) {
  const run = await { 'face-api': faceApi, human }[name]();
  const open = (file) => {
    const { height, width } = JSON.parse(fs.readFileSync(`${file}.json`));
    return run.tensor(fs.readFileSync(file), [height, width, 3]);
  };
  const milliseconds = () => process.cpuUsage().user / 1000 + process.cpuUsage().system / 1000;
  if (!job.endsWith('.json')) {
    const found = await run.find(open(job));
    console.log(found.length ? found[0][1] : 'no face');
    return;
  }
  const settings = JSON.parse(fs.readFileSync(job));
  const result = { faces: {}, ms_face: {}, photos: [], ms_photo: null };
  for (const [key, file] of Object.entries(settings.faces)) {
    const { data, shape: [number, height, width, channels] } = npy(file);
    const size = height * width * channels;
    const labels = [];
    const start = milliseconds();
    for (let i = 0; i < number; i += 1) {
      const face = run.tensor(data.subarray(i * size, (i + 1) * size), [height, width, channels]);
      labels.push(await run.classify(face));
      face.dispose();
    }
    result.faces[key] = labels;
    result.ms_face[key] = (milliseconds() - start) / number;
  }
  if (settings.photos.length) {
    const start = milliseconds();
    for (const file of settings.photos) {
      const photo = open(`${file}.rgb`);
      result.photos.push(await run.find(photo));
      photo.dispose();
    }
    result.ms_photo = (milliseconds() - start) / settings.photos.length;
  }
  fs.writeFileSync(settings.result, JSON.stringify(result));
}

main(...process.argv.slice(2)).catch((error) => { console.error(error); process.exit(1); });
