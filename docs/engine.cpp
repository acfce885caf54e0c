// The classes in an image, by a segmentor exported with --preprocess --argmax, in C++ with OpenVINO alone.
#include <algorithm>
#include <iostream>
#include <set>

#include <openvino/openvino.hpp>

int main(int, char** arguments) {  // the path of engine.onnx or engine.xml
    ov::Core core;
    auto network = core.compile_model(arguments[1], "CPU", ov::hint::inference_precision(ov::element::f32));
    auto request = network.create_infer_request();

    ov::Tensor image(ov::element::u8, network.input("image").get_shape());  // N, H, W, 3
    std::fill_n(image.data<uint8_t>(), image.get_size(), 128);  // instead of this grey: your image, BGR
    request.set_tensor("image", image);
    request.infer();

    ov::Tensor labels = request.get_tensor("labels");  // N, H, W
    std::set<int> classes(labels.data<uint8_t>(), labels.data<uint8_t>() + labels.get_size());
    for (int label : classes) std::cout << label << '\n';  // numbers of the classes in engine.json
}
